"""The TypeScript client of docs/examples: `python -m tests.docs.typescript` renews its schema.d.ts.

The packages are installed by npm, in the versions that the client's package.json pins, into a folder outside of the
repository. Knows nothing of what the client does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.api.document import COPY
from tests.docs.tables import EXAMPLES
from tests.npm import NoPackages, packages

CLIENT = EXAMPLES / "typescript"
SCHEMA = CLIENT / "schema.d.ts"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
RUN_S = 120


def client_packages() -> Path:
    """The folder with `node_modules` of the client.

    Raises:
        NoPackages: they cannot be installed here.
    """
    return packages((CLIENT / "package.json").read_bytes())


def run_tool(name: str, *arguments: object) -> None:
    """Run a command of the installed packages.

    Raises:
        AssertionError: it fails; the message is its output.
        NoPackages: it cannot be installed here.
    """
    command = [str(client_packages() / "node_modules" / ".bin" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def generated_schema() -> str:
    """The text of schema.d.ts as the OpenAPI document has it now."""
    with tempfile.TemporaryDirectory() as folder:
        document, schema = Path(folder, "openapi.json"), Path(folder, "schema.d.ts")
        document.write_text(json.dumps(_without_forms(json.loads(COPY.read_text(encoding="utf-8")))))
        run_tool("openapi-typescript", document, "--output", schema)
        return schema.read_text(encoding="utf-8")


def _without_forms(document: dict[str, Any]) -> dict[str, Any]:
    """The document with JSON bodies alone: forms take the same fields, and would triple the types."""
    for operations in document["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {})
            for form in FORMS:
                content.pop(form, None)
    return document


def compile_client(into: Path) -> Path:
    """Type-check the client and the example with `strict`, and write them as JavaScript.

    Returns:
        The folder with `client.js` and `example.js`.
    """
    for name in ("client.ts", "example.ts", "schema.d.ts", "package.json", "tsconfig.json"):
        shutil.copy(CLIENT / name, into)
    (into / "node_modules").symlink_to(client_packages() / "node_modules")
    run_tool("tsc", "--project", into)
    return into / "build"


def main() -> None:
    """Renew the schema; where npm is missing say so, and leave it as it is."""
    try:
        schema = generated_schema()
    except NoPackages as error:
        print(f"{SCHEMA.name} is left as it is: {error}", file=sys.stderr)
        return
    if not SCHEMA.exists() or schema != SCHEMA.read_text(encoding="utf-8"):
        SCHEMA.write_text(schema, encoding="utf-8")
        print(f"{SCHEMA.name} is updated")


if __name__ == "__main__":
    main()
