"""What a function needs besides the items: here a table of prices, that each worker gets once.

A closure cannot travel to another process. What it would have closed over is given to `init`, and typed there.
"""

import asyncio

import workerlib

PRICES = {"tea": 3, "coffee": 4, "cake": 5}


class Pricing(workerlib.MapWorker[list[str], int]):
    async def init(self, prices: dict[str, int], *, discount: int = 0) -> None:
        self.prices = prices
        self.discount = discount
        print(f"worker {self.index} knows {len(prices)} prices", flush=True)  # its stdout is that of this program

    def map(self, item: list[str]) -> int:
        return sum(self.prices[name] for name in item) - self.discount


async def main() -> None:
    orders = [["tea"], ["coffee", "cake"], ["tea", "tea", "cake"]]
    pricing = {"prices": PRICES, "discount": 1}
    async with workerlib.map(Pricing, orders, workerlib.Config(local=1), init=pricing) as totals:
        async for total in totals:
            print(f"{total} in all")
    try:
        async with workerlib.map(Pricing, [["scone"]], workerlib.Config(local=1), init=pricing) as totals:
            print([total async for total in totals])
    except workerlib.ItemError as error:
        print(error)  # names the item; its __cause__ has the traceback of the worker


if __name__ == "__main__":
    asyncio.run(main())
