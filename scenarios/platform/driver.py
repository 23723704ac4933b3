"""A real Spark driver with one job that does not end: python -m scenarios.platform.driver NAME."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any


def main(name: str) -> None:
    """Run one job for an hour; the driver's page shows it as running."""
    sql: Any = importlib.import_module("pyspark.sql")
    session = sql.SparkSession.builder.master("local[1]").appName(name).getOrCreate()
    session.sparkContext.parallelize([1], 1).foreach(lambda _: time.sleep(3600))


if __name__ == "__main__":
    main(sys.argv[1])
