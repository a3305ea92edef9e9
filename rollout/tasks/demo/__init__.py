"""Small generated tasks for the demo and the tests."""
