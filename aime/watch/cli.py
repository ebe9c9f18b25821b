"""`aime watch`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from aime.ranges import Range, check_ranges
from aime.terminal import printable


@dataclass
class Watch:
    """Follow a run in the browser: live curves of its log, and a film and attention maps of each new checkpoint.

    The page is served on this machine's loopback address alone; from another machine: ssh -L 8765:127.0.0.1:8765 HOST.
    Ctrl-C ends it. The run is only read, while it trains or afterwards.
    """

    run_path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    data: Path | None = None
    """Episode file for the pictures. Default: the one that the run was trained on."""
    port: Annotated[int, Range(0, 65535)] = 8765
    """Port of the page; 0 takes a free one."""
    context: Annotated[int, Range(1, 1000)] = 5
    """Frames that are observed in the film before the model goes on by itself."""
    threads: Annotated[int, Range(1, 1024)] = 1
    """CPU threads for the pictures: few, so that the training beside it keeps its own."""

    def run(self) -> int:
        """Serve until Ctrl-C; returns 0.

        Raises:
            FileNotFoundError: there is no such directory.
            OSError: the port is taken.
        """
        import torch

        from aime.watch.pictures import Pictures
        from aime.watch.server import Server, Watched

        check_ranges(self)
        if not self.run_path.is_dir():
            near = difflib.get_close_matches(self.run_path.name, [f.name for f in self.run_path.parent.glob("*")], n=3)
            hint = f"; near names there: {', '.join(map(printable, near))}" if near else ""
            raise FileNotFoundError(f"{printable(self.run_path)}: expected a run directory, found none{hint}")
        torch.set_num_threads(self.threads)
        watched = Watched(self.run_path, Pictures(self.run_path, self.data, self.context))
        try:
            server = Server(watched, self.port)
        except OSError as error:
            raise OSError(error.errno, f"port {self.port}: {error.strerror}; --port 0 takes a free one") from error
        with server:
            print(f"{printable(self.run_path)} is at {server.url} (Ctrl-C ends it)", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
        return 0
