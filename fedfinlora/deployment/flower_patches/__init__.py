"""What is changed of Flower 1.41's own programs, one file each: what it cures, and the thread upstream if there is one.

`fedfinlora.deployment.flower` puts them in place. A patch takes Flower's function or class and gives another in its
place. Each is tried by itself (tests/deployment/test_flower_habits.py), all over a real deployment
(tests/deployment/test_faults.py).
"""
