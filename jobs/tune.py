"""What a Ray job runs to search settings: `python -m jobs.tune STUDY [dotted.key=value ...]`."""

from slime_ray.cli import main

if __name__ == "__main__":
    main("tune")
