"""What a Ray job runs to train one stage: `python -m jobs.train RECIPE [dotted.key=value ...]`."""

from slime_ray.cli import main

if __name__ == "__main__":
    main("train")
