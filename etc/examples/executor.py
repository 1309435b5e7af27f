"""Moving from the standard library by changing one line: the rest of the program stays as it is."""

from concurrent.futures import as_completed
from math import isqrt

from workerlib import Executor  # was: `from concurrent.futures import ProcessPoolExecutor as Executor`


def largest_prime_factor(n: int) -> int:
    for divisor in range(2, isqrt(n) + 1):
        if n % divisor == 0:
            return max(divisor, largest_prime_factor(n // divisor))
    return n


def main() -> None:
    with Executor(2) as executor:
        numbers = [2**n - 1 for n in range(20, 30)]
        for number, factor in zip(numbers, executor.map(largest_prime_factor, numbers), strict=True):
            print(f"{number:>10}: {factor}")
        futures = {executor.submit(pow, 3, n, 1_000_007): n for n in (10, 100, 1000)}
        print("remainders:", sorted(future.result() for future in as_completed(futures)))
        try:
            executor.submit(largest_prime_factor, "many").result()  # type: ignore[call-overload]  # on purpose
        except TypeError as error:
            print("refused by its types, before it ran:", error)


if __name__ == "__main__":
    main()
