"""The runs of a sweep behind OpenAI's protocol: vLLM's own server over one engine with all their overlays.

`run_engine` is vLLM's asynchronous engine with a model name for each run, `app` the web application over it, `check`
compares what is served with transformers.
"""
