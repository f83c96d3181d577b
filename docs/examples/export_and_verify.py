"""Export a checkpoint and prove on labelled clips that the bundle answers like it.

python export_and_verify.py CHECKPOINT LIST OUTPUT
"""

import sys

from dfer_deploy import ExportOptions, VerifyOptions, export_bundle, verify_bundle


def main(checkpoint: str, clip_list: str, output: str) -> int:
    bundle = export_bundle(checkpoint, output, ExportOptions(target="embedded")).bundle
    # Without in_process=True a server is started and asked too.
    result = verify_bundle(bundle, clip_list, VerifyOptions(checkpoint=checkpoint, in_process=True))
    print(f"{result.truth.name}: UAR {result.truth.uar:.2f} %, WAR {result.truth.war:.2f} %")
    for served in result.comparisons:
        print(f"{served.name}: UAR {served.uar:.2f} %, WAR {served.war:.2f} %, {served.equivalence}")
        for flip in served.flips:
            print(f"  {flip.clip}: {flip.expected} became {flip.answered}")
    for failure in result.failures:
        print(f"failed: {failure}")
    return int(result.exit_code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 4 else __doc__)
