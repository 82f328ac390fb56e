"""The device: a local OpenAI endpoint that drafts here and has the server verify."""
