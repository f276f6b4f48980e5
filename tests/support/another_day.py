"""The app, at noon on $TODAY."""

import os
from datetime import datetime

from app import create_app

noon = datetime.fromisoformat(f"{os.environ['TODAY']}T12:00:00Z")
app = create_app(clock=lambda: noon)
