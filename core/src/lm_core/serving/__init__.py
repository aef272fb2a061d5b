"""A server that many clients share: requests, the batch they are computed in, HTTP around it."""
