"""Buckets that a transaction has in memory: changed there, and written together at its end."""

from __future__ import annotations

from ..rules.errors import StoreError
from .book import Bucket


class BucketsAtHand:
    """How buckets are changed by rows that keep them in memory; see `book.Rows`."""

    _by_id: dict[int, Bucket]
    _changed: set[int]
    """The ids of those that are to be written."""

    def bucket_by_id(self, id: int) -> Bucket | None:
        """See `book.Rows`; where it is read from is a store's own."""
        raise NotImplementedError

    def change_bucket(self, id: int, spent: int, held: int) -> None:
        bucket = self._by_id.get(id) or self.bucket_by_id(id)
        if bucket is None:
            raise StoreError(f"bucket {id} is missing: the ledger is damaged", retryable=False)
        bucket.spent += spent
        bucket.held += held
        self._changed.add(id)

    def add_to_bucket(self, id: int, spent: int, held: int) -> None:
        self.change_bucket(id, spent, held)

    def set_notified(self, id: int, notified: int) -> None:
        bucket = self.bucket_by_id(id)
        if bucket is not None:
            bucket.notified = notified
            self._changed.add(id)

    def set_sums(self, id: int, spent: int, held: int) -> None:
        bucket = self.bucket_by_id(id)
        if bucket is not None:
            bucket.spent, bucket.held = spent, held
            self._changed.add(id)
