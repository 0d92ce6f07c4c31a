"""`make test-compose`: builds the images, runs the stack of docker-compose.yml, and looks whether it trades.

`engine` finds or installs what runs containers, `images` what they are made of, `trade` is the test itself.
"""
