"""Probing resamplers ("Lost in Space", NAACL 2024): is the place of things lost in the visual prompt?"""
