"""One at a time: TVM's lowering passes share state between threads, whatever they lower for."""

from __future__ import annotations

import threading

LOWERING = threading.Lock()
