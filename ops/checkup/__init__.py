"""What `spillway doctor` looks at. `…_facts` modules observe and judge nothing; `…_check` modules judge facts and
touch nothing, so that every verdict can be tested without a machine that is broken in that way.
"""
