"""Load: a client that writes down what it was promised, and holds those receipts against PostgreSQL.

Imports nothing of the service: what both know is the HTTP interface and the table `log_events`.

    locust -f loadtest/locustfile.py --headless -u 20 -r 20 -t 30s --host http://127.0.0.1:8080 --receipts r.jsonl
    python -m loadtest.verify r.jsonl --database-url postgresql://… --wait 30
"""
