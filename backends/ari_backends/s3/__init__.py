"""Buckets of any store that speaks S3: AWS, Ceph, Swift and their like."""
