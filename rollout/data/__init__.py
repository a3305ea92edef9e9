"""Prompts from files: `data_files` finds them, `row_readers` reads them, `prompt_data` checks and splits their rows,
`decontamination` drops what evaluation has, `window` counts tokens against the model's window."""
