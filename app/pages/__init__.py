"""The pages outside Gradio: sign in, sign out, choose a password. Plain HTML that needs no script."""
