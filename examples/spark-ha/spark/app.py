"""An application that never ends: it counts primes in one job after another, and prints a line for each job.

spark.master in spark-defaults.conf lists all masters; the application follows the leader.
"""

import itertools
import time

from pyspark.sql import SparkSession


def is_prime(number: int) -> bool:
    """Return whether `number` is a prime."""
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def main() -> None:
    """Run until killed."""
    spark = SparkSession.builder.appName("primes").getOrCreate()
    numbers = spark.sparkContext.parallelize(range(2_000), 2)
    print(f"application {spark.sparkContext.applicationId}", flush=True)
    for job in itertools.count():
        begin = time.monotonic()
        found = numbers.filter(is_prime).count()
        print(f"job {job}: {found} primes in {time.monotonic() - begin:.2f} s", flush=True)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
