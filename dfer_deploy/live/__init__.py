"""A camera or a video, frame by frame as time passes: reading it, answering for every face, showing the answers."""
