"""What a model says about a clip, a stream or a video, with tables and pictures of it."""
