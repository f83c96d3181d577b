"""Live answers for a camera or a video: reading its frames in real time, answering every face, showing the answers."""
