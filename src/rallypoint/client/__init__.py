"""One node's side: it finds or hosts a coordinator, attaches, waits for rounds, and resumes."""

from rallypoint import logs

logs.tidy("rallypoint.client")
