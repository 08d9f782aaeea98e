"""Tests in the folders below may import the helpers of this one."""
