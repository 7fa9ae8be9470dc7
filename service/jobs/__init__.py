"""Jobs: whole tables, computed in the time that callers leave, by all replicas that share a store.

A job's table is split into shards when it is handed in (`split`). A replica takes a lease on a shard (`queue`), answers
its rows (`worker`), writes them to a file and records that in one transaction, if its lease is still the newest. So a
replica may be killed at any moment: what it had not recorded is computed again by another, and what it had is not.
"""
