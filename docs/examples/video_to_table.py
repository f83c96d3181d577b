"""Turn a video into a table of answers over time and a picture of the probabilities, without a server.

pip install pandas matplotlib
python video_to_table.py BUNDLE VIDEO centerface
"""

import sys
from pathlib import Path

from dfer_deploy import load_bundle


def main(bundle: str, video: str, faces: str = "centerface") -> None:
    with load_bundle(bundle) as model:
        table = model.predict_video(video, faces=faces).to_pandas()  # "none" where the picture is a cropped face
        classes = list(model.labels)
    name = Path(video).stem
    table.to_csv(f"{name}.csv", index=False)
    print(table.groupby("track")["expression"].value_counts().to_string())
    for track, windows in table.groupby("track"):
        axes = windows.plot(x="start_s", y=classes, marker="o", xlabel="seconds", ylabel="probability", ylim=(0, 1))
        axes.figure.savefig(f"{name}-{track}.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) >= 3 else __doc__)
