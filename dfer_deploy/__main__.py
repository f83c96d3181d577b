"""``python -m dfer_deploy`` is the command ``dfer-deploy``."""

from dfer_deploy.cli import main

main()
