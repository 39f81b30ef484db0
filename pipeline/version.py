"""The version of this package. A module of its own, so that no other module imports the package root for it."""

__version__ = "0.1.0"


def user_agent(contact_url: str | None = None) -> str:
    """The header `User-Agent` of outgoing requests; some hosts refuse one without a contact.

    Args:
        contact_url: where the operator can be reached.
    """
    contact = f" (+{contact_url})" if contact_url else ""
    return f"image-to-3d/{__version__}{contact}"
