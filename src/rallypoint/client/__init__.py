"""One node's side: find a coordinator or be one, attach, wait, be told, resume."""

from rallypoint import logs

logs.tidy("rallypoint.client")
