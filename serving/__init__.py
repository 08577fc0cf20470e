"""The online half: a bundle behind gRPC. `serving.client.Client` asks, `serving.server.run` answers.

`serving.pipeline` answers without gRPC, which is what tests and offline comparison use.
"""
