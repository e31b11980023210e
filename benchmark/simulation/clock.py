"""Virtual time of a GPU that runs one forward after another, and of the host that waits for it."""


class VirtualClock:
    """Seconds since the first request could arrive.

    With overlap the host launches a forward before it waits for the one before; so in an iteration
    that launched one, the host has seen the results of all but that one.
    """

    def __init__(self, *, overlap: bool) -> None:
        self.device = 0.0
        """When the last launched forward ends."""
        self._overlap = overlap
        self._end_before = 0.0
        self._launched = False

    @property
    def host(self) -> float:
        """When the newest forward ended whose results the host has."""
        return self._end_before if self._launched and self._overlap else self.device

    @property
    def launched(self) -> bool:
        """Whether a forward was launched in this iteration."""
        return self._launched

    def launch(self, seconds: float) -> None:
        """Run a forward of this many seconds."""
        self._end_before = self.device
        self.device += seconds
        self._launched = True

    def begin_iteration(self) -> None:
        """The host turns to the next iteration."""
        self._launched = False

    def skip_to(self, moment: float) -> None:
        """Nothing runs: wait until this moment, or not at all if it has passed."""
        self.device = max(self.device, moment)
