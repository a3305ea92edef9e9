"""Files of a sweep: `files` writes atomically on any fsspec filesystem, `retries` tries again what may pass,
`run_store` is the checkpoint directory of a run, `tables` has the columns of the parquet files (by
`table_schema`)."""
