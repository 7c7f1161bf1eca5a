"""The web page: Gradio components over the store and the reply pathway. Knows no vLLM, no SQL and no HTTP."""
