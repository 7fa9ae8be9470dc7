"""A shop's catalogue on disk: its description, tables, images, and the four parts it is split into. No torch."""
