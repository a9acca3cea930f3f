"""Bad inputs by generators, each given to the real command: none may end in a traceback."""
