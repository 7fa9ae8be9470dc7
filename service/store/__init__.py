"""What outlives a process: a database, and files beside it. Off until `CMA_CLIP_STORE` names a database."""
