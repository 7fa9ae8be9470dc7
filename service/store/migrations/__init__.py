"""How the schema came about, step by step; `service.store.tables` is what it is now."""
