"""Tables of accounting: entries that are written with outcomes, and the days into which they are folded."""

from datetime import date, datetime

from sqlalchemy import BigInteger, Double, Identity, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Row


class Sums:
    """device_seconds: of engines, each step shared by the tokens in it."""

    num_requests: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    num_failed: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    device_seconds: Mapped[float] = mapped_column(Double, server_default=text("0"))


class UsageEntryRow(Sums, Row):
    """What the outcomes of one transaction used, not yet folded into its day: `db.access.load` reads from them how fast
    work is done. `key_id` 0: without a key. `service_class`: NULL in what an earlier release wrote."""

    __tablename__ = "usage_entries"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    model: Mapped[str]
    service_class: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class UsageDayRow(Sums, Row):
    """What a tenant's requests with a key to a model used on a day (UTC), but for the entries that wait."""

    __tablename__ = "usage_days"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    key_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, server_default=text("0"))
    model: Mapped[str] = mapped_column(primary_key=True)

    __table_args__ = ({"postgresql_with": {"fillfactor": "70"}},)
