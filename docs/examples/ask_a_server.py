"""Ask a server about a clip of frames, about encoded images, and frame by frame.

dfer-deploy serve BUNDLE
python ask_a_server.py grpc://127.0.0.1:8001 FRAME_FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dfer_deploy import CallError, Client


def main(url: str, folder: str) -> None:
    files = sorted(Path(folder).iterdir())
    with Client(url) as client:
        # The server decodes and resizes images, each of which shows a cropped face.
        print(f"encoded images: {client.predict(files)}")
        # Frames that were decoded here have the model's size.
        size = (client.image_size, client.image_size)
        frames = [np.asarray(Image.open(file).convert("RGB").resize(size)) for file in files]
        answer = client.predict(np.stack(frames))
        print(f"a clip: {answer.expression} ({answer.confidence:.0%})")
        # A stream answers after every frame for the 16 frames that end with it.
        with client.stream() as stream:
            for frame in frames:
                try:
                    newest = stream.push(frame)
                except CallError as error:  # the server was away for longer than the deadline; the stream goes on
                    print(f"no answer: {error}")
                    continue
                print(f"{newest.frames:2} frames: {newest.expression} ({newest.confidence:.0%})")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) >= 3 else __doc__)
