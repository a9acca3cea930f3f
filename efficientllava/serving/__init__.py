"""A checkpoint over HTTP: the chat-completions protocol with images, one request at a time."""
