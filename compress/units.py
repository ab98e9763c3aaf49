"""Numbers as the command line and the report write them."""


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, without an exponent: 13.1, 0.0897, 1,240."""
    if not value:
        return "0"
    magnitude = int(f"{value:e}".partition("e")[2])
    rounded = round(value, digits - 1 - magnitude)
    magnitude = int(f"{rounded:e}".partition("e")[2])  # 9.996 became 10.0
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def milliseconds(value: float) -> str:
    """A latency in ms: 13.1 ms, 0.0897 ms."""
    return f"{significant(value)} ms"


def size(value: float) -> str:
    """Bytes in powers of 1000: 830 B, 10.1 MB."""
    for unit in ("B", "kB", "MB"):
        if round(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{significant(value)} {unit}"
        value /= 1000
    return f"{significant(value)} GB"


def percent(share: float, digits: int = 1) -> str:
    """A share: 0.8123 is 81.2 %."""
    return f"{share * 100:.{digits}f} %"


def factor(value: float) -> str:
    """How many times: 82.1×, 1.04×."""
    return f"{significant(value)}×"
