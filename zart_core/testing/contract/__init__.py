"""The behaviour suite that every backend has to pass, third-party ones included.

A backend runs it in its own test tree by saying how to make a store::

    from zart_core.testing import VirtualClock
    from zart_core.testing.contract import Backend, SchedulerContract

    class FileBackend(Backend):
        def __init__(self, path: Path) -> None:
            self.clock = VirtualClock()
            self.path = path

        def scheduler(self) -> MyScheduler:
            return MyScheduler(self.path, clock=self.clock)

        async def audit(self) -> list[str]:
            async with self.scheduler() as scheduler:
                return await scheduler.audit()

    class TestMyScheduler(SchedulerContract):
        @contextlib.asynccontextmanager
        async def backend(self) -> AsyncIterator[Backend]:
            with tempfile.TemporaryDirectory() as folder:
                yield FileBackend(Path(folder) / "store")

pytest collects the inherited methods; each gets a fresh store. A store with a clock of its own leaves ``clock`` at
``None``: the tests then let real time pass, never more than a fifth of a second at once. A store that only one
scheduler can be open on sets ``shared_store = False``.

For messages that show the values compared, put this in ``conftest.py`` before anything imports the suite::

    pytest.register_assert_rewrite("zart_core.testing.contract")
"""

from __future__ import annotations

from zart_core.testing.contract.bench import Backend
from zart_core.testing.contract.cancel import CancelContract
from zart_core.testing.contract.children import ChildContract
from zart_core.testing.contract.claim import ClaimContract
from zart_core.testing.contract.counting import CountingContract
from zart_core.testing.contract.crowds import CrowdContract
from zart_core.testing.contract.deadlines import DeadlineContract
from zart_core.testing.contract.fencing import FencingContract
from zart_core.testing.contract.finish import FinishContract
from zart_core.testing.contract.flush import FlushContract
from zart_core.testing.contract.held_time import HeldTimeContract
from zart_core.testing.contract.keyed import KeyedStartContract
from zart_core.testing.contract.leases import LeaseContract
from zart_core.testing.contract.life import LifeContract
from zart_core.testing.contract.limits import LimitContract
from zart_core.testing.contract.listing import ListingContract
from zart_core.testing.contract.looking import LookContract
from zart_core.testing.contract.notifications import NotificationContract
from zart_core.testing.contract.parts import PartContract
from zart_core.testing.contract.pausing import PausingContract
from zart_core.testing.contract.payloads import PayloadContract
from zart_core.testing.contract.purging import PurgingContract
from zart_core.testing.contract.quarantine import QuarantineContract
from zart_core.testing.contract.queueing import QueueContract
from zart_core.testing.contract.races import RaceContract
from zart_core.testing.contract.reading import ReadingContract
from zart_core.testing.contract.recurring import RecurringContract
from zart_core.testing.contract.signals import SignalContract
from zart_core.testing.contract.start import StartContract
from zart_core.testing.contract.succession import SuccessionContract
from zart_core.testing.contract.suspend import SuspendContract
from zart_core.testing.contract.transact import TransactContract

__all__ = ["Backend", "SchedulerContract"]


class SchedulerContract(
    LifeContract,
    StartContract,
    KeyedStartContract,
    QueueContract,
    LimitContract,
    ClaimContract,
    DeadlineContract,
    FlushContract,
    FencingContract,
    FinishContract,
    SuspendContract,
    TransactContract,
    SignalContract,
    ChildContract,
    PartContract,
    CancelContract,
    LeaseContract,
    LookContract,
    QuarantineContract,
    SuccessionContract,
    HeldTimeContract,
    PausingContract,
    PurgingContract,
    RecurringContract,
    ReadingContract,
    ListingContract,
    CountingContract,
    PayloadContract,
    NotificationContract,
    RaceContract,
    CrowdContract,
):
    """Every behaviour of :class:`~zart_core.scheduler.Scheduler`. Override ``backend``."""
