"""Prompts from files: `data_config` is their section of a spec, `data_files` finds them, `row_readers` reads them,
`row_prompts` makes prompts of them, `prompt_data` checks and splits these, `decontamination` drops what evaluation has,
`window` counts tokens against the model's window."""
