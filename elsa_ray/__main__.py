"""``python -m elsa_ray`` is the command line."""

from elsa_ray.cli import main

main()
