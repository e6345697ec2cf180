"""Examples written without a teacher."""

from potstill.rows import Example


def written(label: str, number: int, **changes) -> Example:
    values = {"example_id": f"{label}{number}", "text": f"{label} text {number}", "label": label, "target_label": label}
    return Example(**{**values, **changes})
