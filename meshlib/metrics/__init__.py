"""What this process counts: recorded as calls end, put together when somebody asks."""
