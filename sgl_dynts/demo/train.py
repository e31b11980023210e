"""The old name of `python -m benchmark.ledgers.train`."""

from sgl_dynts.demo.moved import go_on

if __name__ == "__main__":
    go_on("train")
