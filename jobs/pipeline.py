"""What a Ray job runs to do the whole way: `python -m jobs.pipeline RECIPE [dotted.key=value ...]`."""

from slime_ray.cli import main

if __name__ == "__main__":
    main("pipeline")
