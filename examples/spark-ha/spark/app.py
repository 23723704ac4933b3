"""An application that never ends: it counts primes, one job after another, and prints a line for each.

It names no master: spark.master in spark-defaults.conf has all of them, and it follows whichever leads.
"""

import itertools
import time

from pyspark.sql import SparkSession


def is_prime(number: int) -> bool:
    """Whether nothing but 1 and itself divides `number`."""
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
