"""VizWiz: photos by blind people, with questions."""
